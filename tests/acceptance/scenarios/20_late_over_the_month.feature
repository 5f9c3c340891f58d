Feature: Scenario 20 of the domain page

  Scenario: a spend counts in the month in which it occurred
    Given it is 2027-03-31 16:00:00 in UTC
    And a Business Center acme
    And an ad account shop, in Asia/Bangkok
    And 500 cash is deposited to shop
    And the budget of shop is set to monthly 100
    And campaign spring of shop spends 40
    When it is 2027-03-31 17:00:00 in UTC
    And campaign spring of shop spends 30 at 2027-03-31 23:59:58 in Asia/Bangkok
    Then the budget of shop is monthly 100, 0 spent, 100 remaining
    And shop has 430 cash
    And that is counted in the period that begins on 2027-03-01
    When campaign spring of shop spends 35 at 2027-03-31 23:59:59 in Asia/Bangkok
    Then that is billed 30 and overdelivered 5 by ad_account_budget
    And the budget of shop is monthly 100, 0 spent, 100 remaining
