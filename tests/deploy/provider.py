"""Terraform's providers ``google`` and ``external``, as far as main.tf needs them, over what fake_gcloud.py keeps.

It speaks version 5 of Terraform's plugin protocol. Terraform is told of the port (``TF_REATTACH_PROVIDERS``), so
nothing has to be installed. Roles and bindings behave as those of the real provider do: a role that is there cannot be
created, and whatever is changed besides a role's texts and permissions is made anew.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from msgspec import msgpack

PROVIDERS = ("registry.terraform.io/hashicorp/google", "registry.terraform.io/hashicorp/external")
UNKNOWN = msgpack.Ext(0, b"\x00")
"""A value that is known only after a change."""
STRING, STRINGS = "string", ["set", "string"]
COMPUTED, FLAG = "computed", "bool"
CONDITION = {"title": STRING, "expression": STRING, "description": STRING}
ROLE = "google_project_iam_custom_role"
MEMBERS = {
    "google_storage_bucket_iam_member": "bucket",
    "google_project_iam_member": "project",
    "google_service_account_iam_member": "service_account_id",
}
"""Resources that bind a role to a member, and what says where."""
RESOURCES = {
    ROLE: {
        "project": STRING,
        "role_id": STRING,
        "title": STRING,
        "description": STRING,
        "permissions": STRINGS,
        "stage": STRING,
        "name": COMPUTED,
        "deleted": FLAG,
        "id": COMPUTED,
    },
    **{
        name: {place: STRING, "role": STRING, "member": STRING, "etag": COMPUTED, "id": COMPUTED}
        for name, place in MEMBERS.items()
    },
}
MADE_ANEW = ("project", "role_id", "role", "member", "condition", *MEMBERS.values())
"""Attributes that cannot be changed in place."""
DATA_SOURCES = {
    "google_composer_environment": {
        "name": STRING,
        "region": STRING,
        "config": ["list", ["object", {"node_config": ["list", ["object", {"service_account": STRING}]]}]],
    },
    "google_project_iam_custom_roles": {"project": STRING, "roles": ["list", ["object", {"role_id": STRING}]]},
    "external": {"program": ["list", STRING], "result": ["map", STRING]},
}
ANSWERS = ("config", "roles", "result")
"""Attributes of data sources that the provider fills in."""

MESSAGES = """
Empty:
Value: bytes msgpack=1
Diagnostic: int32 severity=1, string summary=2
Attribute: string name=1, bytes type=2, bool required=4, bool optional=5, bool computed=6
Nested: string type_name=1, Block block=2, int32 nesting=3, int64 max_items=5
Block: repeated Attribute attributes=2, repeated Nested block_types=3
Schema: int64 version=1, Block block=2
NamedSchema: string key=1, Schema value=2
Schemas: Schema provider=1, repeated NamedSchema resource_schemas=2, repeated NamedSchema data_source_schemas=3
Config: Value config=1
Typed: string type_name=1, Value config=2
Prepared: Value prepared_config=1
Diagnostics: repeated Diagnostic diagnostics=1
Raw: bytes json=1
Stored: string type_name=1, int64 version=2, Raw raw_state=3
State: Value state=1, repeated Diagnostic diagnostics=2
Step: string attribute_name=1
Path: repeated Step steps=1
Proposal: string type_name=1, Value prior_state=2, Value proposed_new_state=3
Plan: Value planned_state=1, repeated Path requires_replace=2
Change: string type_name=1, Value prior_state=2, Value planned_state=3
Changed: Value new_state=1, repeated Diagnostic diagnostics=3
Import: string type_name=1, string id=2
Imported: string type_name=1, Value state=2
Imports: repeated Imported imported_resources=1, repeated Diagnostic diagnostics=2
"""
"""Messages of the protocol by names of our own, with the fields that are used; on the wire only numbers count."""


def _messages():
    file = descriptor_pb2.FileDescriptorProto(name="provider.proto", package="p", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for line in MESSAGES.strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for text in filter(None, map(str.strip, fields.split(","))):
            *more, kind, field = text.split()
            field, _, number = field.partition("=")
            label = kinds.LABEL_REPEATED if more else kinds.LABEL_OPTIONAL
            added = message.field.add(name=field, number=int(number), label=label)
            if kind[0].isupper():
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".p.{kind}"
            else:
                added.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        each.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"p.{each.name}"))
        for each in file.message_type
    }


M = _messages()


class Refused(Exception):
    pass


def value(content):
    return M["Value"](msgpack=msgpack.encode(content))


def content(given):
    return msgpack.decode(given.msgpack) if given.msgpack else None


def named(name, deleted):
    """Return what a role's state has besides what was asked for. One that was deleted stays in it."""
    return {"name": name, "id": name, "deleted": deleted}


def schema(attributes, *, answers=(), condition=False):
    block = M["Block"]()
    for name, kind in attributes.items():
        known = kind not in (COMPUTED, FLAG) and name not in answers
        block.attributes.add(
            name=name,
            type=json.dumps(STRING if kind == COMPUTED else kind).encode(),
            optional=known,
            computed=not known or name == "stage",
        )
    if condition:
        within = M["Block"]()
        for name, kind in CONDITION.items():
            within.attributes.add(name=name, type=json.dumps(kind).encode(), optional=True)
        block.block_types.add(type_name="condition", block=within, nesting=2, max_items=1)
    return M["Schema"](block=block)


class Provider:
    """The calls of the protocol.

    :param cloud: the project, which is a ``clouds.Cloud``.
    """

    def __init__(self, cloud):
        self._cloud = cloud

    def get_schema(self, _):
        answer = M["Schemas"](provider=schema({"project": STRING, "region": STRING}))
        for name, attributes in RESOURCES.items():
            answer.resource_schemas.add(key=name, value=schema(attributes, condition=name in MEMBERS))
        for name, attributes in DATA_SOURCES.items():
            answer.data_source_schemas.add(key=name, value=schema(attributes, answers=ANSWERS))
        return answer

    def prepare(self, request):
        return M["Prepared"](prepared_config=request.config)

    def nothing(self, _):
        return M["Diagnostics"]()

    def upgrade(self, request):
        return M["State"](state=value(json.loads(request.raw_state.json)))

    def plan(self, request):
        before, after = content(request.prior_state), content(request.proposed_new_state)
        if after is None:
            return M["Plan"](planned_state=request.proposed_new_state)
        if request.type_name == ROLE and after["stage"] is None:
            after["stage"] = "GA"
        computed = [name for name, kind in RESOURCES[request.type_name].items() if kind in (COMPUTED, FLAG)]
        changed = [] if before is None else [name for name in MADE_ANEW if before.get(name) != after.get(name)]
        if before is None or changed:
            after |= dict.fromkeys(computed, UNKNOWN)
        answer = M["Plan"](planned_state=value(after))
        for name in changed:
            answer.requires_replace.add().steps.add(attribute_name=name)
        return answer

    def apply(self, request):
        before, after = content(request.prior_state), content(request.planned_state)
        act = self._role if request.type_name == ROLE else self._binding
        return M["Changed"](new_state=value(act(request.type_name, before, after)))

    def read(self, request):
        """Read a resource as it is now; the request has the fields of a data source's."""
        return M["State"](state=value(self._found(request.type_name, content(request.config))))

    def read_data(self, request):
        asked = content(request.config)
        if request.type_name == "external":
            assert asked["program"][0] == "bqdispatch"
            done = self._cloud.command(*asked["program"][1:])
            if done.returncode:
                raise Refused(done.stderr)
            return M["State"](state=value(asked | {"result": json.loads(done.stdout)}))
        if request.type_name == "google_composer_environment":
            assert (asked["name"], asked["region"]) == (self._cloud.environment, "europe-west1")
            account = self._cloud.account
            return M["State"](state=value(asked | {"config": [{"node_config": [{"service_account": account}]}]}))
        start = f"projects/{asked['project']}/roles/"
        roles = [name for name, role in self._cloud.roles.items() if name.startswith(start) and not role.get("deleted")]
        found = [{"role_id": name.removeprefix(start)} for name in roles]
        return M["State"](state=value(asked | {"roles": found}))

    def import_state(self, request):
        _, project, _, role_id = request.id.split("/")
        asked = dict.fromkeys(RESOURCES[ROLE]) | {"project": project, "role_id": role_id}
        answer = M["Imports"]()
        answer.imported_resources.add(type_name=ROLE, state=value(self._found(ROLE, asked)))
        return answer

    def _found(self, kind, state):
        if kind != ROLE:
            return state if self._as_bound(kind, state) in self._cloud.bindings else None
        name = f"projects/{state['project']}/roles/{state['role_id']}"
        role = self._cloud.roles.get(name)
        if role is None:
            return None
        texts = {key: role.get(key) for key in ("title", "description", "stage")}
        return {
            **state,
            **texts,
            "permissions": sorted(role["includedPermissions"]),
            **named(name, role.get("deleted", False)),
        }

    def _role(self, _, before, after):
        roles = self._cloud.roles
        name = "projects/{project}/roles/{role_id}".format(**after or before)
        if before is None and name in roles and not roles[name].get("deleted"):
            raise Refused(f"Error 409: A role named {name} already exists")
        if after is None:
            roles[name]["deleted"] = True
        else:
            texts = {key: after[key] for key in ("title", "description", "stage")}
            roles[name] = {**texts, "includedPermissions": after["permissions"]}
        self._cloud.set(roles=roles)
        return after and after | named(name, False)

    def _binding(self, kind, before, after):
        bindings = deepcopy(self._cloud.bindings)
        if before is not None:
            bindings.remove(self._as_bound(kind, before))
        if after is not None and (bound := self._as_bound(kind, after)) not in bindings:
            bindings.append(bound)
        self._cloud.set(bindings=bindings)
        return after and {**after, "etag": "CAE=", "id": "/".join(self._as_bound(kind, after)[:3])}

    @staticmethod
    def _as_bound(kind, state):
        """A binding as the fake keeps it, which names an account by its address, as gcloud does."""
        place = state[MEMBERS[kind]]
        place = (
            f"gs://{place}"
            if kind == "google_storage_bucket_iam_member"
            else place.removeprefix("projects/-/serviceAccounts/")
        )
        (condition,) = state["condition"] or [None]
        limited = condition and {key: text for key, text in condition.items() if text}
        return [place, state["member"], state["role"], limited]


CALLS = {
    "GetSchema": (Provider.get_schema, "Empty", "Schemas"),
    "PrepareProviderConfig": (Provider.prepare, "Config", "Prepared"),
    "ValidateResourceTypeConfig": (Provider.nothing, "Typed", "Diagnostics"),
    "ValidateDataSourceConfig": (Provider.nothing, "Typed", "Diagnostics"),
    "UpgradeResourceState": (Provider.upgrade, "Stored", "State"),
    "Configure": (Provider.nothing, "Empty", "Diagnostics"),
    "ReadResource": (Provider.read, "Typed", "State"),
    "PlanResourceChange": (Provider.plan, "Proposal", "Plan"),
    "ApplyResourceChange": (Provider.apply, "Change", "Changed"),
    "ImportResourceState": (Provider.import_state, "Import", "Imports"),
    "ReadDataSource": (Provider.read_data, "Typed", "State"),
    "Stop": (Provider.nothing, "Empty", "Diagnostics"),
}


@contextmanager
def provided(cloud):
    """Serve both providers; the context is the environment variables for Terraform."""
    provider = Provider(cloud)

    def handler(act, request, answer):
        def call(given, _):
            try:
                return act(provider, given)
            except Refused as error:
                refused = M[answer]()
                refused.diagnostics.add(severity=1, summary=str(error))
                return refused

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=M[request].FromString, response_serializer=M[answer].SerializeToString
        )

    server = grpc.server(ThreadPoolExecutor(1))
    calls = {name: handler(*call) for name, call in CALLS.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tfplugin5.Provider", calls)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    address = {"Network": "tcp", "String": f"127.0.0.1:{port}"}
    there = {"Protocol": "grpc", "ProtocolVersion": 5, "Pid": os.getpid(), "Test": True, "Addr": address}
    try:
        yield {"TF_REATTACH_PROVIDERS": json.dumps(dict.fromkeys(PROVIDERS, there))}
    finally:
        server.stop(None).wait()
