Feature: Scenario 11 of the domain page

  Scenario: an account pauses when its budget is used up to the last micro
    Given a Business Center acme
    And an ad account shop
    And 500 cash is deposited to shop
    And the budget of shop is set to daily 100
    And campaign spring of shop spends 99.50
    And shop delivers
    When campaign spring of shop spends 0.50
    Then the budget of shop is daily 100, 100.00 spent, 0 remaining
    And that is billed 0.50 in full
    And shop is paused by ad_account_budget
    And the signals of shop since then are
      | paused | ad_account_budget | ad_account_budget |
