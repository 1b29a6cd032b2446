//! `kubernetes_feature_enabled` in `/metrics`: the feature gates of Kubernetes v1.37, their stages, and
//! which are on. Operators read there what a cluster does.
//!
//! No gate can be switched here: on is what is on by default. What of that is not built, `docs/plan.md`
//! says. Upstream: `test/compatibility_lifecycle/reference/versioned_feature_list.yaml`.

use std::fmt::Write;

use super::metrics::head;

/// Stage, whether they are on, and the gates. What is stable has no stage.
static GATES: [(&str, bool, &str); 6] = [
    (
        "ALPHA",
        false,
        "AllAlpha APIServerWebhookAuthenticationToken APIServingWithRoutine AtomicWriteVolumeUserFields
         CBORServingAndStorage CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook
         CompositePodGroup ConsistentListFromCacheSkipTimeoutFallback ContainerStopSignals
         ControllerManagerReleaseLeaderElectionLockOnExit CPUManagerPolicyAlphaOptions CRIListStreaming
         CrossNamespaceVolumeDataSource CSIVolumeHealth DefaultPodSysctls DRADerivedAttributes
         DRADeviceCompatibilityGroups DRAListTypeAttributes DRANodeAllocatableResources DRAOptionalNodeOperations
         DRAPartitionableDevicesType DRAResourcePoolStatus EmptyDirVolumeMode EventedPLEG EvictionRequestAPI
         GRPCContainerProbeTLS H2CContainerProbe ImageVolumeWithDigest InPlacePodVerticalScalingExclusiveCPUs
         InPlacePodVerticalScalingExclusiveMemory InPlacePodVerticalScalingMemoryBackedVolumes
         InPlacePodVerticalScalingSchedulerPreemption InterPodAffinityHostnameFastPath KubeletAllocatedPodsEndpoint
         KubeProxyNFTablesLocalhostNodePorts LoggingAlphaOptions MutablePVNodeAffinity NodeLifecycleConditions
         PodGroupPreemptionPolicy PodLogsQuerySplitStreams QOSReserved ReduceDefaultCrashLoopBackOffDecay
         RuntimeClassInImageCriApi SchedulerPreQueueingHints ShardedListAndWatch StatefulSetRecreateStrategy
         StorageVersionAPI TaintTolerationComparisonOperators TopologyAwareWorkloadScheduling
         TopologyManagerPolicyAlphaOptions UserNamespacesHostNetworkSupport VolumeBindMountOptions
         WatchCacheStallResume WindowsCPUAndMemoryAffinity WorkloadWithJob",
    ),
    (
        "BETA",
        false,
        "AllBeta CoordinatedLeaderElection DRAWorkloadResourceClaims GenericWorkload
         LocalStorageCapacityIsolationFSQuotaMonitoring PodAndContainerStatsFromCRI PodLevelResourceManagers
         SchedulerAsyncAPICalls",
    ),
    (
        "BETA",
        true,
        "AllowParsingUserUIDFromCertAuth AllowUnsafeMalformedObjectDeletion APIResponseCompression APIServerIdentity
         AuthorizePodWebsocketUpgradeCreatePermission ClearingNominatedNodeNameAfterBinding ComponentFlagz
         ComponentStatusz ConcurrentWatchObjectDecode ConstrainedImpersonation ContainerCheckpoint
         ContainerRestartRules ContextualLogging CPUManagerPolicyBetaOptions CRDObservedGenerationTracking
         DeclarativeValidationBeta DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency
         DRAConsumableCapacity DRADeviceBindingConditions DRAFractionalCapacityRange DRAPartitionableDevices
         DRAResourceClaimGranularStatusAuthorization DRASchedulerFilterTimeout EnvFiles EtcdRangeStream
         ExcludeAdmissionWebhookVirtualResources ExtendWebSocketsToKubelet GracefulNodeShutdown
         GracefulNodeShutdownBasedOnPodPriority HPAGeneration HPAOptimizedSelectorStore HPAScaleToZero
         HugepageAwareEviction InPlacePodLevelResourcesVerticalScaling KubeletCrashLoopBackOffMax
         KubeletEnsureSecretPulledImages KubeletInUserNamespace KubeletSeparateDiskGC
         KubeletServiceAccountTokenForCredentialProviders ListFromCacheSnapshot LoggingBetaOptions
         ManifestBasedAdmissionControlConfig MatchLabelKeysInPodTopologySpread
         MatchLabelKeysInPodTopologySpreadSelectorMerge MaxUnavailableStatefulSet MemoryQoS
         MutablePodResourcesForSuspendedJobs MutableSchedulingDirectivesForSuspendedJobs NativeHistograms
         NFTablesNetlink NodeControllerLeaseCircuitBreaker NominatedNodeNameForExpectation OpenAPIEnums
         OpportunisticBatching PersistentVolumeClaimUnusedSinceTime PodDeletionCost PodLevelResources
         PodLevelResourcesFixDefaulting PodLevelResourcesFixKubeletQOSClass PodsAPI PodTopologyLabelsAdmission
         PortForwardWebsockets ReloadKubeletClientCAFile ReloadKubeletServerCertificateFile RemoteRequestHeaderUID
         ResourceHealthStatus ResourceHealthStatusMessage RestartAllContainersOnContainerExits
         RotateKubeletServerCertificate SchedulerAsyncPreemption SchedulerPopFromBackoffQ
         ServiceAccountNodeAudienceRestriction SizeBasedListCostEstimate StaleControllerConsistencyDaemonSet
         StaleControllerConsistencyHPA StaleControllerConsistencyJob StaleControllerConsistencyReplicaSet
         StaleControllerConsistencyStatefulSet StatefulSetSemanticRevisionComparison StorageCapacityScoring
         StorageVersionHash StrictIPCIDRValidation StructuredAuthenticationConfigurationEgressSelector
         StructuredAuthenticationConfigurationJWKSMetrics TokenRequestServiceAccountUIDValidation
         TopologyManagerPolicyBetaOptions TranslateStreamCloseWebsocketRequests UnauthenticatedHTTP2DOSMitigation
         UnknownVersionInteroperabilityProxy VolumeLimitScaling WatchList WatchListCompression
         WebhookRoundTripLoadBalancing WindowsGracefulNodeShutdown",
    ),
    (
        "",
        true,
        "AllowServiceExternalIPs ClusterTrustBundle ClusterTrustBundleProjection CPUManagerPolicyOptions
         CRDValidationRatcheting CSIServiceAccountTokenSecrets CustomCPUCFSQuotaPeriod CustomResourceFieldSelectors
         DeclarativeValidation DisableAllocatorDualWrite DRAAdminAccess DRADeviceTaintRules DRADeviceTaints
         DRAExtendedResource DRAPrioritizedList DRAResourceClaimDeviceStatus DynamicResourceAllocation
         ExecProbeTimeout ExternalServiceAccountTokenSigner HostnameOverride HPAConfigurableTolerance
         ImageMaximumGCAge ImageVolume InPlacePodVerticalScaling InPlacePodVerticalScalingInitContainers JobManagedBy
         KubeletCgroupDriverFromCRI KubeletFineGrainedAuthz KubeletPodResourcesDynamicResources
         KubeletPodResourcesGet KubeletPSI KubeletTracing MatchLabelKeysInPodAffinity MultiCIDRServiceAllocator
         MutableCSINodeAllocatableCount MutatingAdmissionPolicy NFTablesProxyMode NodeDeclaredFeatures
         NodeInclusionPolicyInPodTopologySpread NodeLogQuery NodeSwap PLEGOnDemandRelist PodCertificateRequest
         PodObservedGenerationTracking PodReadyToStartContainersCondition PodSchedulingReadiness
         PreferSameTrafficDistribution ProcMountType RecoverVolumeExpansionFailure RecursiveReadOnlyMounts
         RelaxedEnvironmentVariableValidation RelaxedServiceNameValidation SELinuxChangePolicy SELinuxMount
         SELinuxMountReadWriteOncePod SeparateTaintEvictionController ServiceAccountTokenJTI
         ServiceAccountTokenNodeBinding ServiceAccountTokenNodeBindingValidation ServiceAccountTokenPodNodeInfo
         StorageVersionMigrator SupplementalGroupsPolicy SystemdWatchdog TopologyManagerPolicyOptions
         UserNamespacesSupport VolumeAttributesClass WatchCacheInitializationPostStartHook WinDSR WinOverlay",
    ),
    (
        "DEPRECATED",
        true,
        "AggregatedDiscoveryRemoveBetaType DisableCPUQuotaWithExclusiveCPUs DisableNodeKubeProxyVersion
         KubeletPodResourcesListUseActivePods KubeProxyIPVS ServiceCIDRStatusFieldWiping StorageNamespaceIndex",
    ),
    (
        "DEPRECATED",
        false,
        "AllowDNSOnlyNodeCSR AllowInsecureKubeletCertificateSigningRequests
         AllowOverwriteTerminationGracePeriodSeconds ChangeContainerStatusOnKubeletRestart
         DeclarativeValidationTakeover GitRepoVolumeDriver KMSv1 KubeletRegistrationGetOnExistsOnly
         SeparateCacheWatchRPC WindowsHostNetwork",
    ),
];

pub fn render(out: &mut String) {
    let name = "kubernetes_feature_enabled";
    let help = "This metric records the data about the stage and enablement of a k8s feature.";
    head(out, name, "BETA", "gauge", help);
    for (gate, stage, on) in all() {
        let _ = writeln!(out, "{name}{{name=\"{gate}\",stage=\"{stage}\"}} {}", u8::from(on));
    }
}

/// By name.
fn all() -> Vec<(&'static str, &'static str, bool)> {
    let gates =
        GATES.iter().flat_map(|(stage, on, names)| names.split_whitespace().map(move |gate| (gate, *stage, *on)));
    let mut gates: Vec<_> = gates.collect();
    gates.sort_unstable();
    gates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gate_is_told_once_with_its_stage() {
        let gates = all();
        assert!(gates.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let mut page = String::new();
        render(&mut page);
        for line in [
            "# TYPE kubernetes_feature_enabled gauge\n",
            "kubernetes_feature_enabled{name=\"AllAlpha\",stage=\"ALPHA\"} 0\n",
            "kubernetes_feature_enabled{name=\"APIResponseCompression\",stage=\"BETA\"} 1\n",
            "kubernetes_feature_enabled{name=\"InPlacePodVerticalScaling\",stage=\"\"} 1\n",
            "kubernetes_feature_enabled{name=\"KMSv1\",stage=\"DEPRECATED\"} 0\n",
        ] {
            assert!(page.contains(line), "{line}");
        }
    }
}
