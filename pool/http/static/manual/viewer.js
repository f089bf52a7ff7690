/** Shows the OpenAPI document by Swagger UI, with the token of the page or one that is entered. */

import { Api } from "../api.js";

const form = document.getElementById("token-form");
const trouble = document.getElementById("trouble");
const api = new Api({ onUnauthorized() {} });

async function start() {
  trouble.textContent = "";
  try {
    show(await api.get("../openapi.json"));
    form.hidden = true;
  } catch (error) {
    if (error.status !== 401) {
      trouble.textContent = error.message;
      return;
    }
    if (api.token) trouble.textContent = "The daemon does not know this token.";
    form.hidden = false;
    document.getElementById("token").focus();
  }
}

function show(spec) {
  SwaggerUIBundle({
    spec,
    dom_id: "#viewer",
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    validatorUrl: null,
    requestInterceptor: (request) => {
      const own = new URL(request.url, location.href).origin === location.origin;
      if (own && api.token) request.headers.Authorization ??= `Bearer ${api.token}`;
      return request;
    },
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  api.token = document.getElementById("token").value.trim();
  start();
});

const dark = matchMedia("(prefers-color-scheme: dark)");
function follow() {
  document.documentElement.classList.toggle("dark-mode", dark.matches);
}
dark.addEventListener("change", follow);
follow();
start();
