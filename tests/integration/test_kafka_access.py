"""Users, rights and quotas in Apache Kafka are those of the table. Ours have no others."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from drawdown.deployment.kafka_access import PRINCIPALS, _rights, allow, quotas, rights_of
from drawdown.deployment.kafka_quotas import quotas_of, set_quotas
from drawdown.deployment.kafka_users import set_passwords, users_of
from shared.runtime.kafka import SPEND_EVENTS, start_client
from shared.runtime.settings import Settings
from tests.acceptance.front_door import until
from tests.containers import ContainerBroker, KafkaContainer

pytestmark = pytest.mark.containers

SCRAM_SHA_512 = 2


def right(name: str, topic: str, operation: int) -> tuple[Any, ...]:
    return 2, topic, 3, f"User:{name}", "*", operation, 3


@pytest.fixture(scope="module")
async def settings() -> AsyncIterator[Settings]:
    """Yield the settings of a cluster that checks rights, for a listener that allows everything."""
    container = KafkaContainer()
    container.with_envs(
        KAFKA_AUTHORIZER_CLASS_NAME="org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        KAFKA_SUPER_USERS="User:ANONYMOUS",
    )
    broker = ContainerBroker(container)
    try:
        await broker.start()
        yield Settings(kafka_bootstrap_servers=broker.url)
    finally:
        container.stop()


@pytest.fixture
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = await start_client(settings, AIOKafkaAdminClient)
    yield admin
    await admin.close()


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    for name in PRINCIPALS:
        (tmp_path / name).write_text(f"of {name}\n")
    return tmp_path


async def held(admin: AIOKafkaAdminClient, users: set[str], rights: set[Any], limits: dict[str, Any]) -> None:
    """Return once the broker has exactly these rights. It applies them a moment after its answer."""
    known = {name: [SCRAM_SHA_512] for name in users}

    async def ask() -> bool | None:
        found = (await users_of(admin), await rights_of(admin), await quotas_of(admin))
        return True if found == (known, rights, limits) else None

    await until(f"users {users}, rights {rights}, quotas {limits}", ask)


async def test_the_cluster_has_exactly_the_rights_of_the_table_for_our_users(
    settings: Settings, admin: AIOKafkaAdminClient, passwords: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = (set(PRINCIPALS), set(_rights()), quotas(settings))
    for _ in range(2):
        await allow(settings, passwords)
        await held(admin, *wanted)
    assert "left alone" not in capsys.readouterr().out

    await set_passwords(admin, {"drawdown-former": "x", "analysts": "x"})
    await set_quotas(
        admin, {"drawdown-former": {"producer_byte_rate": 1.0}, "ad-delivery": {"consumer_byte_rate": 1.0}}
    )
    of_analysts = right("analysts", SPEND_EVENTS, 3)
    extra = {right("drawdown-former", SPEND_EVENTS, 4), right("ad-delivery", SPEND_EVENTS, 3), of_analysts}
    for each in extra:
        await admin._send_request(CreateAclsRequest(*each))
    limits = {**wanted[2], "drawdown-former": {"producer_byte_rate": 1.0}, "ad-delivery": {"consumer_byte_rate": 1.0}}
    await held(admin, {*wanted[0], "drawdown-former", "analysts"}, wanted[1] | extra, limits)

    await allow(settings, passwords)
    await held(admin, {*wanted[0], "analysts"}, wanted[1] | {of_analysts}, wanted[2])
    assert capsys.readouterr().out.splitlines()[-1] == "other users, left alone: analysts"


async def test_a_user_may_send_as_many_bytes_as_the_settings_say(
    settings: Settings, admin: AIOKafkaAdminClient, passwords: Path
) -> None:
    less = settings.model_copy(update={"kafka_ad_delivery_bytes_per_second": 7})
    await allow(less, passwords)

    async def is_told() -> bool | None:
        return True if (await quotas_of(admin))["ad-delivery"]["producer_byte_rate"] == 7.0 else None

    await until("the quota of ad-delivery is 7 bytes a second", is_told)
