Feature: Scenario 28 of the domain page

  Scenario: a late spend is held against its own day's budget and never eats today's
    Given it is 2027-03-31 18:00:00 in UTC
    And a Business Center acme
    And an ad account shop, in Asia/Karachi
    And 500 cash is deposited to shop
    And the budget of shop is set to daily 100
    And campaign spring of shop spends 95
    When it is 2027-03-31 19:00:00 in UTC
    And campaign spring of shop spends 10 at 2027-03-31 23:00:00 in Asia/Karachi
    Then that is billed 5 and overdelivered 5 by ad_account_budget
    And the budget of shop is daily 100, 0 spent, 100 remaining
    And shop delivers
    And nothing is signalled for shop
