Feature: Scenario 02 of the domain page

  Scenario: enabling automatic allocation leaves a finite budget alone
    Given a Business Center acme
    And an ad account shop
    And 100 cash is deposited to shop
    And the budget of shop is set to monthly 50
    When automatic allocation is enabled for acme
    Then acme has 100 cash
    And shop has 0 in all
    And the budget of shop is monthly 50, 0 spent, 50 remaining
