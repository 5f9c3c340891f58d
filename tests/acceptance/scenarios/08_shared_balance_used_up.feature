Feature: Scenario 08 of the domain page

  Scenario: the account that uses up the shared balance pauses all of them
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And 10 cash is deposited to acme
    And an ad account shop
    And an ad account store
    And an ad account outlet
    When campaign spring of shop spends 10
    Then shop is paused by business_center_balance
    And store is paused by business_center_balance
    And outlet is paused by business_center_balance
    And the signals of store since then are
      | paused | business_center_balance | business_center_balance |
    And campaign spring of shop stands still with its account
