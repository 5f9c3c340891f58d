Feature: Scenario 16 of the domain page

  Scenario: who may set an account's budget
    Given a Business Center acme
    And an ad account shop
    When a finance_analyst sets the budget of shop to daily 50
    Then that is refused as permission_denied
    When a standard sets the budget of shop to daily 50
    Then that is refused as permission_denied
    And nothing is written for acme
    When a finance_manager sets the budget of shop to daily 50
    Then the budget of shop is daily 50, 0 spent, 50 remaining
    And shop has 9 budget changes left today
