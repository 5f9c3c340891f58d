Feature: Scenario 15 of the domain page

  Scenario: a budget set within the month counts what the month has spent
    Given it is 2027-03-31 14:00:00 in UTC
    And a Business Center acme
    And an ad account shop
    And 1000 cash is deposited to shop
    And campaign spring of shop spends 300 at 2027-03-26 10:00:00 in UTC
    And campaign spring of shop spends 100
    When the budget of shop is set to monthly 600
    Then the budget of shop is monthly 600, 400 spent, 200 remaining
