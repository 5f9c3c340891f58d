Feature: Scenario 03 of the domain page

  Scenario: there is no way back to manual allocation
    Given a Business Center acme
    And an ad account shop
    And automatic allocation is enabled for acme
    When automatic allocation is disabled for acme
    Then that is refused as irreversible
    And nothing is written for acme
    And shop takes part in automatic allocation
