Feature: Scenario 05 of the domain page

  Scenario: the account's own voucher and ad credit pay before the shared cash
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And an ad account shop
    And 100 cash is deposited to acme
    And the budget of shop is set to daily 1000
    And voucher gift of 30 is granted to shop
    And ad credit promo of 20 is granted to acme
    And 20 of ad credit promo is allocated to shop
    When campaign spring of shop spends 70
    Then that is paid by
      | voucher_debit        | ad_account      | voucher   | 30 |
      | ad_credit_debit      | ad_account      | ad_credit | 20 |
      | business_center_draw | business_center | cash      | 20 |
    And acme has 80 cash
    And acme has 80 in all
    And shop has 0 in all
    And the budget of shop is daily 1000, 70 spent, 930 remaining
