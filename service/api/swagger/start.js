"use strict";
// No validator: it would be asked at another host.
SwaggerUIBundle({ dom_id: "#swagger-ui", url: "openapi.json", deepLinking: true, validatorUrl: null });
