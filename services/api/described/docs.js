"use strict";

// The API takes a write without a token from a page only if it says that it is JSON, also where it has no body.
function sayJson(request) {
  if (request.method === "POST") request.headers["Content-Type"] ??= "application/json";
  return request;
}

// A token that is entered with "Authorize" is kept in the page's memory alone: it is gone when the page is.
SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: "/openapi.json",
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false,
  requestInterceptor: sayJson,
  validatorUrl: null, // Otherwise the description is sent to another host.
});
