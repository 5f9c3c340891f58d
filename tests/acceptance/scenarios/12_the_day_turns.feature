Feature: Scenario 12 of the domain page

  Scenario: a daily budget begins anew when the day does, in the account's own time zone
    Given it is 2027-03-31 14:00:00 in UTC
    And a Business Center acme
    And an ad account shop, in Asia/Tokyo
    And 500 cash is deposited to shop
    And the budget of shop is set to daily 100
    And campaign spring of shop spends 100
    And shop is paused by ad_account_budget
    When it is 2027-03-31 15:00:00 in UTC
    Then shop delivers
    And the budget of shop is daily 100, 0 spent, 100 remaining
    And the signals of shop since then are
      | resumed | ad_account_budget | |
