Feature: Scenario 13 of the domain page

  Scenario: a custom budget lasts until it is reset, whatever the month
    Given it is 2027-03-31 15:00:00 in UTC
    And a Business Center acme
    And an ad account shop, in Asia/Shanghai
    And an ad account kiosk, in Asia/Shanghai
    And 500 cash is deposited to shop
    And the budget of shop is set to custom 200
    And the budget of kiosk is set to daily 200
    And campaign spring of shop spends 200
    When it is 2027-03-31 16:00:00 in UTC
    Then shop is paused by ad_account_budget
    And the budget of shop is custom 200, 200 spent, 0 remaining
    When the budget of shop is reset
    Then the budget of shop is custom 200, 0 spent, 200 remaining
    And shop delivers
    When the budget of kiosk is reset
    Then that is refused
    And nothing is written for acme
