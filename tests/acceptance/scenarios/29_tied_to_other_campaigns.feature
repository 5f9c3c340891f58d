Feature: Scenario 29 of the domain page

  Scenario: a campaign that nothing can pay for any more pauses alone
    Given a Business Center acme
    And an ad account shop
    And voucher gift of 20 is granted to shop, for campaign spring
    And campaign spring of shop spends 1
    When campaign summer of shop spends 5
    Then that is billed 0 and overdelivered 5 by ad_account_balance
    And campaign summer of shop is paused by ad_account_balance
    And shop delivers
    And campaign spring of shop delivers
