Feature: Scenario 19 of the domain page

  Scenario: an event counts once, and cannot be changed by sending it again
    Given a Business Center acme
    And an ad account shop
    And 100 cash is deposited to shop
    When campaign spring of shop spends 5
    And that spend is sent again
    Then shop has 95 cash
    And that is paid by
      | cash_debit | ad_account | cash | 5 |
    When that spend is sent again with amount 6
    Then it is quarantined as content_conflict
    And shop has 95 cash
    And the spend of shop is gross 5, billed 5, overdelivered 0
