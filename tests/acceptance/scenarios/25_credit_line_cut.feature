Feature: Scenario 25 of the domain page

  Scenario: a credit line cut below what is used stops delivery until it is above zero again
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And an ad account shop
    And the credit line of acme is set to 1000
    And campaign spring of shop spends 600
    When the credit line of acme is set to 500
    Then acme has -100 credit available
    And acme has 0 in all
    And shop is paused by business_center_balance
    When 150 is paid on the credit line of acme
    Then acme has 50 credit available
    And shop delivers
    And the signals of shop since then are
      | paused  | business_center_balance | business_center_balance |
      | resumed | business_center_balance |                         |
