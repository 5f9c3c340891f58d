"""The API's description of itself: OpenAPI, AsyncAPI and the page at `/docs`."""
