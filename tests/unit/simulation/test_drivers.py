"""The simulation runs the shipped driver, and has no copy of its functions."""

import ast
from pathlib import Path

import simulation

FOLDER = Path(simulation.__file__).parent
SHIPPED = {"AdmissionControl", "Driver", "LeaseSync", "Leases"}
DRIVER_JOBS = {
    "admit", "refused_with_any_lease", "never_fits", "victims",
    "next_message", "messages", "take_effects", "due",
    "serve", "serve_lease_waits", "retire_idle",
}  # fmt: skip
"""The calls of the admission control and the driver. The simulation reaches them through the driver."""
JOBS_OF = {"sync": {"answered", "failed", "pushed", "tick", "tick_steps"}, "control": {"settle", "wake"}}
"""The same for names that the simulation may use on other objects."""
ALLOWED = {"self.driver.serve"}


def trees() -> list[ast.Module]:
    return [ast.parse(path.read_text()) for path in sorted(FOLDER.rglob("*.py"))]


def imported_from_the_domain(tree: ast.Module) -> set[str]:
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokenpool.")
        for alias in node.names
    }


def driver_jobs(tree: ast.Module) -> list[str]:
    """The calls and definitions of a module that belong to the driver."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in SHIPPED:
            found.append(f"class {node.name}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        *owners, name = called.split(".")
        owner = owners[-1] if owners else ""
        if called not in ALLOWED and (name in DRIVER_JOBS or name in JOBS_OF.get(owner, ())):
            found.append(called)
    return found


def test_the_simulation_uses_the_shipped_parts() -> None:
    imported = set().union(*(imported_from_the_domain(tree) for tree in trees()))
    assert imported >= SHIPPED


def test_the_simulation_has_no_driver_of_its_own() -> None:
    assert [job for tree in trees() for job in driver_jobs(tree)] == []


def test_the_rule_notices_a_driver() -> None:
    planted = """
class Driver: ...
class Sidecar:
    def offer(self, request):
        if refused_with_any_lease(self.ledger, request.cost):
            return
        decision = rules.admit(self.ledger, request)
        self.driver.settle(request.ticket)
        self.driver.serve()
    def send(self):
        while (message := self.sync.next_message(self.now)) is not None:
            self.carry(message, lambda answer: self.sync.answered(message, answer))
        effects = self.control.take_effects()
        self.control.settle(effects.to_end[0])
        self.control.wake(self.now)
        for pending in self.leases.due(self.now):
            self.answered(pending)
"""
    assert sorted(driver_jobs(ast.parse(planted))) == [
        "class Driver",
        "refused_with_any_lease",
        "rules.admit",
        "self.control.settle",
        "self.control.take_effects",
        "self.control.wake",
        "self.leases.due",
        "self.sync.answered",
        "self.sync.next_message",
    ]
