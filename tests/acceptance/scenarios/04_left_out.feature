Feature: Scenario 04 of the domain page

  Scenario: accounts that cannot take part are left out, each with its reason
    Given a Business Center acme
    And an ad account shop
    And an ad account stage, for reservation
    And an ad account agency, not owned
    And an ad account kiosk, on prepay
    And 10 cash is deposited to stage
    When automatic allocation is enabled for acme
    Then left out of automatic allocation of acme are
      | stage  | not_auction            |
      | agency | not_owned              |
      | kiosk  | not_monthly_invoicing  |
    And shop takes part in automatic allocation
    And stage takes no part in automatic allocation
    And stage has 10 cash
    And acme has 0 cash
