"""The door of an intruder in a container: the rights that containers lack."""

from typing import Any

from drawdown.serving import SERVICES
from tests.security.check import Check, require
from tests.security.target import SERVERS, Target

_PUBLISHED = {"api", "kafka"}
_FIND = "find / -xdev -type f '(' -perm /6000 -o -name 'pip*' -perm /111 ')' 2>/dev/null; true"


async def _each(target: Target) -> dict[str, dict[str, Any]]:
    return {service: await target.inspect(service) for service in (*SERVICES, *SERVERS)}


async def confined(target: Target) -> str:
    """Inspect the restrictions of every container."""
    for service, found in (await _each(target)).items():
        host = found["HostConfig"]
        require(found["Config"]["User"] not in ("", "0", "root"), f"{service} runs as root")
        require(host["ReadonlyRootfs"], f"{service} may write to its root")
        require(host["CapDrop"] == ["ALL"] and not host["CapAdd"], f"{service} has capabilities")
        require(not host["Privileged"], f"{service} is privileged")
        require("no-new-privileges:true" in (host["SecurityOpt"] or []), f"{service} may gain privileges")
        require(
            host["Memory"] > 0 and host["PidsLimit"] > 0, f"{service} may take all memory, or any number of processes"
        )
    return f"{len(SERVICES) + len(SERVERS)} containers: no root, no capability, nothing to write to, all bounded"


async def as_the_kernel_sees_it(target: Target) -> str:
    """Ask the kernel from within each container, and try to write."""
    script = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t\\n'; touch /opt/x 2>&1; id -u"
    for service in SERVICES:
        said = await target.compose("exec", "--no-TTY", service, "sh", "-c", script)
        require("CapEff:0000000000000000" in said, f"{service}: {said}")
        require("NoNewPrivs:1" in said, f"{service}: {said}")
        require("Read-only file system" in said or "Permission denied" in said, f"{service} writes: {said}")
    return "no capability, no new privilege, and nothing written in any of them"


async def no_visible_secrets(target: Target) -> str:
    """Look for the bytes of each secret in the descriptions of every container and its image."""
    secrets = {
        str(path.relative_to(target.secrets)): path.read_text().strip()
        for folder in ("kafka", "database", "api")
        for path in (target.secrets / folder).iterdir()
        if path.is_file() and path.name != "keys.json"
    }
    for service, found in (await _each(target)).items():
        told = repr(found["Config"])
        shown = [name for name, secret in secrets.items() if secret and secret in told]
        require(not shown, f"{service} shows {shown} in its environment or command")
    return f"none of {len(secrets)} secrets is in an environment, a command or a label"


async def no_tools_to_gain_rights(target: Target) -> str:
    """Look for programs that run as another user, or install packages."""
    found = await target.compose("exec", "--no-TTY", "api", "sh", "-c", _FIND)
    require(not found.strip(), f"the image has {found.split()}")
    return "none"


async def published(target: Target) -> str:
    """Check which ports are published, and at which address."""
    places = {
        (service, binding["HostIp"])
        for service, found in (await _each(target)).items()
        for bindings in found["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    }
    require({service for service, _ in places} <= _PUBLISHED, f"published: {sorted(places)}")
    return ", ".join(f"{service} at {address}" for service, address in sorted(places))


CHECKS = (
    Check("containers", "confined", "root, capabilities, writing, unbounded memory", confined),
    Check("containers", "kernel", "the same, asked of the kernel from within", as_the_kernel_sees_it),
    Check("containers", "secrets", "reading secrets where containers are described", no_visible_secrets),
    Check("containers", "programs", "set-uid programs and package managers in the image", no_tools_to_gain_rights),
    Check("containers", "published", "ports of anything but the API and Kafka", published),
)
