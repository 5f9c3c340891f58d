Feature: Scenario 17 of the domain page

  Scenario: a campaign's budget pauses that campaign alone
    Given a Business Center acme
    And an ad account shop
    And 500 cash is deposited to shop
    And the budget of shop is set to daily 200
    And the budget of campaign spring of shop is set to lifetime 50
    And campaign summer of shop spends 1
    And campaign spring of shop spends 50
    And shop delivers
    And campaign summer of shop delivers
    And campaign spring of shop is paused by campaign_budget
    When the budget of shop is set to daily 400
    Then campaign spring of shop is paused by campaign_budget
    And nothing is signalled for campaign spring of shop
