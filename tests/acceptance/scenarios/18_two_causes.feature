Feature: Scenario 18 of the domain page

  Scenario: a top-up does not resume an account whose budget is used up
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And an ad account shop
    And 10 cash is deposited to acme
    And the budget of shop is set to daily 10
    And campaign spring of shop spends 10
    And shop is paused by ad_account_budget, business_center_balance
    When 5 cash is deposited to acme
    Then shop is paused by ad_account_budget
    And the signals of shop since then are
      | causes_changed | business_center_balance | ad_account_budget |
