Feature: Scenario 09 of the domain page

  Scenario: adding to the shared balance resumes whoever has no other cause
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And 10 cash is deposited to acme
    And an ad account shop
    And an ad account store
    And an ad account outlet
    And the budget of shop is set to daily 10
    And campaign spring of shop spends 10
    When 1.00 cash is deposited to acme
    Then store delivers
    And outlet delivers
    And shop is paused by ad_account_budget
    And the signals of store since then are
      | resumed | business_center_balance | |
    And the signals of shop since then are
      | causes_changed | business_center_balance | ad_account_budget |
