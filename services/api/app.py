"""The application: every route, its errors, its metrics and its description."""

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware

from services.api import (
    access,
    ad_accounts,
    asyncapi,
    business_centers,
    campaigns,
    commands,
    deals,
    documentation,
    errors,
    ledger,
    lookup,
    openapi,
    operations,
    pacing,
    quarantine,
    series,
    spend_detail,
)
from services.api.context import Context
from services.api.gate import Gate
from services.api.headers import SafeHeaders
from shared.contracts.commands import FINANCE_COMMAND

# What holds somebody's data, all below /v1/: there the gate asks for a token, unless the settings say otherwise.
PROTECTED = (
    commands,
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
    """Wire the application to its connections."""
    app = FastAPI(
        title="Drawdown",
        version="1",
        summary="Who pays for an ad, and when it must stop",
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
    openapi.describe(app, [FINANCE_COMMAND, deals.DEAL_TERMS, quarantine.REPLAY_REQUEST, lookup.EVENTS_LOOKUP])
    app.state.pages = documentation.pages(app.openapi(), asyncapi.document())
    return app
