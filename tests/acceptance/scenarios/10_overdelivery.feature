Feature: Scenario 10 of the domain page

  Scenario: what no pocket covers is overdelivery, and nobody is billed for it
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And an ad account shop
    And 5 cash is deposited to acme
    When campaign spring of shop spends 8
    Then that is billed 5 and overdelivered 3 by business_center_balance
    And acme has 0 in all
    And the spend of acme is gross 8, billed 5, overdelivered 3
    And the spend of shop is gross 8, billed 5, overdelivered 3
    And shop is paused by business_center_balance
