{{- define "flare.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: pod names are host names (63), and the longest suffix is that of a Deployment's pod. */}}
{{- define "flare.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "flare.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "flare.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of an object. Call: (dict "root" $ "component" "node") */}}
{{- define "flare.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "flare.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
flarekv.io/cluster: {{ include "flare.fullname" .root }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels that never change, and so may be selected by: these, flarekv.io/cluster and the user's are all that a pod template has. */}}
{{- define "flare.selectorLabels" -}}
app.kubernetes.io/name: {{ include "flare.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* The same as a label selector in one line, for the controller's flags. */}}
{{- define "flare.selector" -}}
app.kubernetes.io/name={{ include "flare.name" .root }},app.kubernetes.io/instance={{ .root.Release.Name }},app.kubernetes.io/component={{ .component }}
{{- end -}}

{{/* Reference of an image. Call: (dict "root" $ "image" .Values.images.flared) */}}
{{- define "flare.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default (printf "v%s" .root.Chart.AppVersion) }}
{{- end -}}
{{- end -}}

{{/* Name by which the nodes and agents find the leading controller. */}}
{{- define "flare.controllerHost" -}}
{{ include "flare.fullname" . }}-controller.{{ .Release.Namespace }}.{{ .Values.serviceDomain }}
{{- end -}}

{{- define "flare.controllerServiceAccount" -}}
{{ .Values.controller.serviceAccount.name | default (printf "%s-controller" (include "flare.fullname" .)) }}
{{- end -}}

{{- define "flare.nodeServiceAccount" -}}
{{ .Values.node.serviceAccount.name | default (printf "%s-nodes" (include "flare.fullname" .)) }}
{{- end -}}

{{/* Call: (dict "root" $ "component" "node" "spread" .Values.node.topologySpread) */}}
{{- define "flare.topologySpread" -}}
{{- $root := .root -}}
{{- $component := .component -}}
{{- range $constraint := list (list "topology.kubernetes.io/zone" .spread.zone) (list "kubernetes.io/hostname" .spread.host) }}
{{- if ne (index $constraint 1) "Disabled" }}
- maxSkew: 1
  topologyKey: {{ index $constraint 0 }}
  whenUnsatisfiable: {{ index $constraint 1 }}
  labelSelector:
    matchLabels:
      {{- include "flare.selectorLabels" (dict "root" $root "component" $component) | nindent 6 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What the schema cannot say. Included by the FlareCluster's template, so that it stops a release before anything is changed. */}}
{{- define "flare.validate" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$" (include "flare.fullname" .)) -}}
{{- fail (printf "%q cannot begin the names of Services: set fullnameOverride to at most 40 lower-case letters, digits and hyphens, beginning with a letter" (include "flare.fullname" .)) -}}
{{- end -}}
{{- if le (int .Values.partitionSize) (int .Values.partitions) -}}
{{- fail (printf "partitionSize (%d) must be greater than partitions (%d)" (int .Values.partitionSize) (int .Values.partitions)) -}}
{{- end -}}
{{- if gt (int .Values.replication.minInSync) (int .Values.replicas) -}}
{{- fail (printf "replication.minInSync (%d) must not be greater than replicas (%d): no write would ever be taken" (int .Values.replication.minInSync) (int .Values.replicas)) -}}
{{- end -}}
{{- if and .Values.clusterReplication.enabled (not .Values.clusterReplication.target) -}}
{{- fail "clusterReplication.target is missing: want host:port of a node of the other cluster" -}}
{{- end -}}
{{- /* Nothing is looked up where there is nothing yet: the lookup of an unknown kind is an error. */ -}}
{{- if .Capabilities.APIVersions.Has "flarekv.io/v1/FlareCluster" -}}
{{- $live := lookup "flarekv.io/v1" "FlareCluster" .Release.Namespace (include "flare.fullname" .) -}}
{{- if $live -}}
{{- $from := int $live.spec.partitions -}}
{{- $to := int .Values.partitions -}}
{{- if lt $to $from -}}
{{- fail (printf "partition_reduction: partitions cannot go from %d to %d: the keys of the removed partitions would be lost. Install a second release with %d partitions, copy the data by cluster replication, then move the clients." $from $to $to) -}}
{{- end -}}
{{- $mapping := mergeOverwrite (dict "hash" "simple" "type" "modular" "hint" 1 "virtual" 4096) (default dict $live.spec.keyMapping) -}}
{{- range $field, $want := .Values.keyMapping -}}
{{- $was := get $mapping $field -}}
{{- if or (ne (int64 $was) (int64 $want)) (and (kindIs "string" $want) (ne (toString $was) $want)) -}}
{{- fail (printf "key_mapping_immutable: keyMapping.%s cannot go from %v to %v: it decides which partition a key belongs to. Install a second release with it, copy the data, then move the clients." $field $was $want) -}}
{{- end -}}
{{- end -}}
{{- if ne (int (default 1024 $live.spec.partitionSize)) (int .Values.partitionSize) -}}
{{- fail (printf "partition_size_immutable: partitionSize cannot go from %d to %d: it decides which partition a key belongs to. Install a second release with it, copy the data, then move the clients." (int (default 1024 $live.spec.partitionSize)) (int .Values.partitionSize)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
