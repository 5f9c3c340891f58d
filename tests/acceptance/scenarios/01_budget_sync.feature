Feature: Scenario 01 of the domain page

  Scenario: enabling automatic allocation caps an account without a budget at what it had
    Given a Business Center acme
    And an ad account shop
    And 100 cash is deposited to shop
    When automatic allocation is enabled for acme
    Then acme has 100 cash
    And shop has 0 in all
    And the budget of shop is custom 100, 0 spent, 100 remaining
    And shop has 10 budget changes left today
    And shop delivers
