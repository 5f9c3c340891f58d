"""What the API says of itself: OpenAPI, AsyncAPI and the page at `/docs`."""
