Feature: Scenario 22 of the domain page

  Scenario: what is left of a voucher at its expiry is forfeited
    Given it is 2027-03-31 17:00:00 in UTC
    And a Business Center acme
    And an ad account shop
    And voucher gift of 50 is granted to shop, until 2027-03-31 18:00:00 in UTC
    And 20 cash is deposited to shop
    And campaign spring of shop spends 10
    And shop has 40 voucher
    When it is 2027-03-31 18:00:00 in UTC
    Then shop has 0 voucher
    And 40 of voucher gift of acme are forfeited
    When campaign spring of shop spends 5
    Then that is paid by
      | cash_debit | ad_account | cash | 5 |
