Feature: Scenario 26 of the domain page

  Scenario: a command is applied once, however often it is sent
    Given a Business Center acme
    And an ad account shop
    When 100 cash is deposited to shop
    And the same command is sent again
    Then it has the same outcome
    And shop has 100 cash
    When the budget of shop is reset
    Then that is refused
    When the same command is sent again
    Then that is refused
    And it has the same outcome
