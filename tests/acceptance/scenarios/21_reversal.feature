Feature: Scenario 21 of the domain page

  Scenario: a reversal returns the money to the pockets that paid
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And an ad account shop
    And voucher gift of 10 is granted to shop
    And 5 cash is deposited to acme
    And the cash spend of shop is followed
    And campaign spring of shop spends 15
    And the cash spend of shop is 5
    And shop has 0 voucher
    When 15 of that spend is reversed
    Then that is returned to
      | reversal | business_center | cash    | 5  |
      | reversal | ad_account      | voucher | 10 |
    And shop has 10 voucher
    And acme has 5 cash
    And the cash spend of shop is 0
    And the spend of shop is gross 0, billed 0, overdelivered 0
    And shop delivers
