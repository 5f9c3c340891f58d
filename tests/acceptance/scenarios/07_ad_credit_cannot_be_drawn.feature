Feature: Scenario 07 of the domain page

  Scenario: ad credit of the Business Center is shown, and nobody draws on it
    Given a Business Center acme
    And automatic allocation is enabled for acme
    And an ad account shop
    And an ad account store
    When ad credit promo of 500 is granted to acme
    Then acme has 500 ad credit
    And acme has 0 in all
    And shop is paused by business_center_balance
    And store is paused by business_center_balance
