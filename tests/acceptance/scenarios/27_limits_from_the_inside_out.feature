Feature: Scenario 27 of the domain page

  Scenario: limits apply from the inside out: campaign, account, money
    Given a Business Center acme
    And an ad account shop
    And 3 cash is deposited to shop
    And the budget of shop is set to daily 8
    And the budget of campaign spring of shop is set to lifetime 5
    When campaign spring of shop spends 10
    Then that is billed 3 and overdelivered 5 by campaign_budget, 2 by ad_account_balance
    And shop is paused by ad_account_balance
    And the budget of shop is daily 8, 3 spent, 5 remaining
    And the budget of campaign spring of shop is lifetime 5, 3 spent, 2 remaining
    And campaign spring of shop stands still with its account
