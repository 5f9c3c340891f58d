Feature: Scenario 06 of the domain page

  Scenario: when the shared cash is gone, the credit line pays
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And an ad account shop
    And 50 cash is deposited to acme
    And the credit line of acme is set to 100
    When campaign spring of shop spends 120
    Then that is paid by
      | business_center_draw | business_center | cash        | 50 |
      | business_center_draw | business_center | credit_line | 70 |
    And acme has 0 cash
    And acme has 30 credit available
    And acme has 70 credit used
    And shop delivers
