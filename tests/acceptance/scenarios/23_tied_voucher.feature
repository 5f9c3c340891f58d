Feature: Scenario 23 of the domain page

  Scenario: a voucher tied to a campaign pays for that campaign only
    Given a Business Center acme
    And an ad account shop
    And voucher gift of 30 is granted to shop, for campaign spring
    And 20 cash is deposited to shop
    When campaign summer of shop spends 5
    Then that is paid by
      | cash_debit | ad_account | cash | 5 |
    And shop has 30 voucher
    When campaign spring of shop spends 5
    Then shop has 25 voucher
