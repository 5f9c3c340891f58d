Feature: Scenario 30 of the domain page

  Scenario: one cause takes over from another, and at no moment does the account deliver
    Given a Business Center acme
    And an ad account shop
    And the budget of shop is set to daily 100
    And shop is paused by ad_account_balance
    When automatic allocation is enabled for acme
    Then shop is paused by business_center_balance
    And the signals of shop since then are
      | causes_changed | business_center_balance | ad_account_balance, business_center_balance |
      | causes_changed | ad_account_balance      | business_center_balance                     |
