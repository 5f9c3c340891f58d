"""The application: wires routes, error answers, metrics and the description together."""

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware

from services.api.commands import publishing
from services.api.context import Context
from services.api.described import asyncapi, documentation, openapi
from services.api.door import access, errors
from services.api.door.gate import Gate
from services.api.door.headers import SafeHeaders
from services.api.incentives import deals, pacing, spend_detail
from services.api.operating import operations
from services.api.past import ledger, series
from services.api.present import ad_accounts, business_centers, campaigns, lookup
from services.api.quarantine import routes as quarantine
from services.incentives.terms import DEAL_TERMS
from shared.contracts.commands import FINANCE_COMMAND

# Routes with customer data. All are below /v1/, where the gate asks for a token, unless authentication is off.
PROTECTED = (
    publishing,
    business_centers,
    ad_accounts,
    campaigns,
    series,
    ledger,
    lookup,
    deals,
    pacing,
    spend_detail,
    quarantine,
)
OPEN = (operations, asyncapi, documentation)


def create_app(context: Context) -> FastAPI:
    """Return the application with all its routes, on these connections."""
    app = FastAPI(
        title="Drawdown",
        version="1",
        summary="Which pocket pays for each ad, and when delivery must stop",
        description=documentation.DESCRIPTION,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(operations.CountRequests), Middleware(SafeHeaders), Middleware(Gate)],
    )
    app.state.context = context
    for module in PROTECTED:
        dependencies = [Depends(access.identify)]
        app.include_router(module.router, dependencies=dependencies, responses=openapi.ACCESS_PROBLEMS)
    for module in OPEN:
        app.include_router(module.router)
    errors.install(app)
    openapi.describe(app, [FINANCE_COMMAND, DEAL_TERMS, quarantine.REPLAY_REQUEST, lookup.EVENTS_LOOKUP])
    app.state.pages = documentation.pages(app.openapi(), asyncapi.document())
    return app
