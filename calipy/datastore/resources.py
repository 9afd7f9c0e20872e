"""Calico's v3 resources as frozen values; one import for everybody.

``KINDS`` lists every kind with the types of its spec and status. How members map to attributes, and what None means, is
told in ``calipy.datastore.kinds.base``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from calipy.datastore.keys import NAMESPACED, PLURALS
from calipy.datastore.kinds.base import GoStruct
from calipy.datastore.kinds.bgp import (
    AddCommunity,
    BGPConfigurationSpec,
    BGPFilterRule,
    BGPFilterSpec,
    BGPPassword,
    BGPPeerSpec,
    CIDRBlock,
    Community,
    CommunityMatch,
    FilterOperation,
    PrefixAdvertisement,
    PrefixLengthRange,
    PrependASPath,
    SecretKeySelector,
    SetPriority,
)
from calipy.datastore.kinds.cluster import (
    AutoHostEndpointConfig,
    CalicoNodeStatusSpec,
    CalicoNodeStatusStatus,
    ClusterInformationSpec,
    ControllersConfig,
    KubeControllersConfigurationSpec,
    KubeControllersConfigurationStatus,
    NodeControllerConfig,
    TemplateSpec,
)
from calipy.datastore.kinds.endpoints import (
    IPNAT,
    EndpointPort,
    HostEndpointSpec,
    NodeAddress,
    NodeBGPSpec,
    NodeInterface,
    NodeSpec,
    NodeStatus,
    NodeWireguardSpec,
    OrchRef,
    QoSControls,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from calipy.datastore.kinds.felix import FelixConfigurationSpec, HealthTimeoutOverride, ProtoPort, RouteTableRange
from calipy.datastore.kinds.meta import API_VERSION, NoStatus, ObjectMeta, Resource
from calipy.datastore.kinds.policy import (
    GlobalNetworkPolicySpec,
    GlobalNetworkSetSpec,
    LabelRequirement,
    LabelSelector,
    NetworkPolicySpec,
    NetworkSetSpec,
    ProfileSpec,
    StagedGlobalNetworkPolicySpec,
    StagedKubernetesNetworkPolicySpec,
    StagedNetworkPolicySpec,
    TierSpec,
    TierStatus,
)
from calipy.datastore.kinds.pools import IPAMConfigurationSpec, IPPoolSpec, IPPoolStatus, IPReservationSpec
from calipy.datastore.kinds.rules import (
    EntityRule,
    HTTPMatch,
    HTTPPath,
    ICMPFields,
    Rule,
    RuleMetadata,
    ServiceAccountMatch,
    ServiceMatch,
)

__all__ = [
    "API_VERSION",
    "IPNAT",
    "KINDS",
    "AddCommunity",
    "AutoHostEndpointConfig",
    "BGPConfigurationSpec",
    "BGPFilterRule",
    "BGPFilterSpec",
    "BGPPassword",
    "BGPPeerSpec",
    "CIDRBlock",
    "CalicoNodeStatusSpec",
    "CalicoNodeStatusStatus",
    "ClusterInformationSpec",
    "Community",
    "CommunityMatch",
    "ControllersConfig",
    "EndpointPort",
    "EntityRule",
    "FelixConfigurationSpec",
    "FilterOperation",
    "GlobalNetworkPolicySpec",
    "GlobalNetworkSetSpec",
    "HTTPMatch",
    "HTTPPath",
    "HealthTimeoutOverride",
    "HostEndpointSpec",
    "ICMPFields",
    "IPAMConfigurationSpec",
    "IPPoolSpec",
    "IPPoolStatus",
    "IPReservationSpec",
    "Kind",
    "KubeControllersConfigurationSpec",
    "KubeControllersConfigurationStatus",
    "LabelRequirement",
    "LabelSelector",
    "NetworkPolicySpec",
    "NetworkSetSpec",
    "NoStatus",
    "NodeAddress",
    "NodeBGPSpec",
    "NodeControllerConfig",
    "NodeInterface",
    "NodeSpec",
    "NodeStatus",
    "NodeWireguardSpec",
    "ObjectMeta",
    "OrchRef",
    "PrefixAdvertisement",
    "PrefixLengthRange",
    "PrependASPath",
    "ProfileSpec",
    "ProtoPort",
    "QoSControls",
    "Resource",
    "RouteTableRange",
    "Rule",
    "RuleMetadata",
    "SecretKeySelector",
    "ServiceAccountMatch",
    "ServiceMatch",
    "SetPriority",
    "StagedGlobalNetworkPolicySpec",
    "StagedKubernetesNetworkPolicySpec",
    "StagedNetworkPolicySpec",
    "TemplateSpec",
    "TierSpec",
    "TierStatus",
    "WorkloadEndpointPort",
    "WorkloadEndpointSpec",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of resource.

    Attributes:
        name: ``IPPool``.
        plural: its folder, ``ippools``.
        namespaced: its objects live in a namespace.
        spec: struct of the spec.
        status: struct of the status; ``NoStatus`` for kinds without.
        status_always: Calico writes the status even when nothing is in it.
    """

    name: str
    plural: str
    namespaced: bool
    spec: type[GoStruct]
    status: type[GoStruct]
    status_always: bool

    @property
    def resource(self) -> Any:
        """The parametrised ``Resource`` type."""
        return Resource[self.spec, self.status]  # type: ignore[name-defined]  # parametrised at run time


def _kind(name: str, spec: type[GoStruct], status: type[GoStruct] = NoStatus, *, status_always: bool = False) -> Kind:
    return Kind(name, PLURALS[name], name in NAMESPACED, spec, status, status_always)


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        _kind("BGPConfiguration", BGPConfigurationSpec),
        _kind("BGPFilter", BGPFilterSpec),
        _kind("BGPPeer", BGPPeerSpec),
        _kind("CalicoNodeStatus", CalicoNodeStatusSpec, CalicoNodeStatusStatus, status_always=True),
        _kind("ClusterInformation", ClusterInformationSpec),
        _kind("FelixConfiguration", FelixConfigurationSpec),
        _kind("GlobalNetworkPolicy", GlobalNetworkPolicySpec),
        _kind("GlobalNetworkSet", GlobalNetworkSetSpec),
        _kind("HostEndpoint", HostEndpointSpec),
        _kind("IPAMConfiguration", IPAMConfigurationSpec),
        _kind("IPPool", IPPoolSpec, IPPoolStatus),
        _kind("IPReservation", IPReservationSpec),
        _kind(
            "KubeControllersConfiguration",
            KubeControllersConfigurationSpec,
            KubeControllersConfigurationStatus,
            status_always=True,
        ),
        _kind("NetworkPolicy", NetworkPolicySpec),
        _kind("NetworkSet", NetworkSetSpec),
        _kind("Node", NodeSpec, NodeStatus, status_always=True),
        _kind("Profile", ProfileSpec),
        _kind("StagedGlobalNetworkPolicy", StagedGlobalNetworkPolicySpec),
        _kind("StagedKubernetesNetworkPolicy", StagedKubernetesNetworkPolicySpec),
        _kind("StagedNetworkPolicy", StagedNetworkPolicySpec),
        _kind("Tier", TierSpec, TierStatus, status_always=True),
        _kind("WorkloadEndpoint", WorkloadEndpointSpec),
    )
}
"""Every kind calipy reads and writes, by name."""
