Feature: Scenario 14 of the domain page

  Scenario: a budget can be changed ten times a day
    Given a Business Center acme
    And an ad account shop
    And the budget of shop is changed 10 times
    And shop has 0 budget changes left today
    When the budget of shop is set to daily 77
    Then that is refused as budget_change_limit
    And nothing is written for acme
    And shop has 0 budget changes left today
