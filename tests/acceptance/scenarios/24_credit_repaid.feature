Feature: Scenario 24 of the domain page

  Scenario: paying an invoice restores exactly what was paid
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And an ad account shop
    And the credit line of acme is set to 1000
    And campaign spring of shop spends 600
    And acme has 400 credit available
    When 250 is paid on the credit line of acme
    Then acme has 650 credit available
    And acme has 350 credit used
