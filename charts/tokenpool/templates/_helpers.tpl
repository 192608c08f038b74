{{/* The prefix of every name: the release's name, which contains "tokenpool" in the usual installation. */}}
{{- define "tokenpool.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $chart .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $chart | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "tokenpool.labels" -}}
app.kubernetes.io/part-of: tokenpool
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{/* What selects the pods of one part. Call: (list $ "coordinator"). */}}
{{- define "tokenpool.selector" -}}
app.kubernetes.io/name: tokenpool-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end -}}

{{/* The labels of a part's pods, whose names do not change with the version of the chart. Call: (list $ "coordinator"). */}}
{{- define "tokenpool.podLabels" -}}
{{ include "tokenpool.selector" . }}
app.kubernetes.io/part-of: tokenpool
{{- end -}}

{{/* An image by tag and digest. Call: (list $ .Values.image). */}}
{{- define "tokenpool.image" -}}
{{- $image := index . 1 -}}
{{- with $image.registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{- $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "tokenpool.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "tokenpool.fullname" .) "default") -}}
{{- end -}}

{{/* "yes" if the chart runs a Redis of its own. */}}
{{- define "tokenpool.ownRedis" -}}
{{- if not (or .Values.store.existingSecret .Values.store.url) -}}yes{{- end -}}
{{- end -}}

{{- define "tokenpool.storeSecret" -}}
{{- .Values.store.existingSecret | default (printf "%s-store" (include "tokenpool.fullname" .)) -}}
{{- end -}}

{{/* The names of the keys in the pool file, and those with a value, as a list. */}}
{{- define "tokenpool.keyNames" -}}
{{- $names := keys .Values.keys.values -}}
{{- $keys := .Values.poolFile.administrator_keys | default list -}}
{{- range .Values.poolFile.entitlements -}}
{{- $keys = concat $keys (.api_keys | default list) -}}
{{- end -}}
{{- range $key := $keys -}}
{{- if kindIs "map" $key -}}
{{- if hasPrefix "/etc/tokenpool/keys/" ($key.file | default "") -}}
{{- $names = append $names (trimPrefix "/etc/tokenpool/keys/" $key.file) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $names | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* The Secret with the keys; empty if there are none. */}}
{{- define "tokenpool.keysSecret" -}}
{{- if .Values.keys.existingSecret -}}
{{- .Values.keys.existingSecret -}}
{{- else if include "tokenpool.keyNames" . | fromJsonArray -}}
{{- printf "%s-keys" (include "tokenpool.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/*
The pools with where their engines run, as {"pools": [...]}: each is engineDefaults with the pool's own entry of
`engines`, its name, its replicas, and the prefix of its objects' names. It fails on what cannot work.
*/}}
{{- define "tokenpool.pools" -}}
{{- $root := . -}}
{{- $made := list -}}
{{- $seen := dict -}}
{{- $names := list -}}
{{- range $pool := .Values.poolFile.pools -}}
{{- $names = append $names $pool.name -}}
{{- $engine := mergeOverwrite (deepCopy $root.Values.engineDefaults) (deepCopy (get $root.Values.engines $pool.name | default dict)) -}}
{{- $overrides := get $root.Values.engines $pool.name | default dict -}}
{{- /* These are replaced, not merged: a label or a resource less could not be said otherwise. */ -}}
{{- with $overrides.selector -}}{{- $_ := set $engine "selector" . -}}{{- end -}}
{{- with ($overrides.deployment).resources -}}{{- $_ := set $engine.deployment "resources" . -}}{{- end -}}
{{- $namespace := $engine.namespace | default $root.Release.Namespace -}}
{{- $short := $pool.name | lower | replace "_" "-" | replace "." "-" -}}
{{- $_ := set $engine "pool" $pool.name -}}
{{- $_ := set $engine "namespace" $namespace -}}
{{- $_ := set $engine "fullname" (printf "%s-%s" (include "tokenpool.fullname" $root) $short | trunc 63 | trimSuffix "-") -}}
{{- $_ := set $engine.service "name" ($engine.service.name | default $short) -}}
{{- $replicas := $pool.replicas | default dict -}}
{{- $least := $replicas.min | default 1 -}}
{{- $_ := set $engine "replicas" (dict "min" $least "max" ($replicas.max | default $least)) -}}
{{- $where := printf "%s %s" $namespace (toJson $engine.selector) -}}
{{- with get $seen $where -}}
{{- fail (printf "engines.%s.selector: the pools %s and %s select the same pods of the namespace %s; give each a label of its own" $pool.name . $pool.name $namespace) -}}
{{- end -}}
{{- $_ := set $seen $where $pool.name -}}
{{- if and $engine.deployment.create (not $root.Values.injector.enabled) -}}
{{- fail (printf "engines.%s.deployment.create needs injector.enabled: without it the engine would serve every client" $pool.name) -}}
{{- end -}}
{{- if and (eq $root.Values.autoscaling.kind "hpa") (ne $namespace $root.Release.Namespace) -}}
{{- fail (printf "autoscaling.kind: hpa reads a metric of the coordinators' namespace, %s, and the engines of %s run in %s; use keda" $root.Release.Namespace $pool.name $namespace) -}}
{{- end -}}
{{- $made = append $made $engine -}}
{{- end -}}
{{- range $name := keys .Values.engines | sortAlpha -}}
{{- if not (has $name $names) -}}
{{- fail (printf "engines.%s: poolFile.pools has no pool of this name; it has %s" $name (join ", " $names)) -}}
{{- end -}}
{{- end -}}
{{- toJson (dict "pools" $made) -}}
{{- end -}}

{{/* Every namespace with engines, and with `release: true` also the release's, as a list. Call: (list $ false). */}}
{{- define "tokenpool.namespaces" -}}
{{- $root := index . 0 -}}
{{- $found := list -}}
{{- if index . 1 -}}{{- $found = append $found $root.Release.Namespace -}}{{- end -}}
{{- range (include "tokenpool.pools" $root | fromJson).pools -}}{{- $found = append $found .namespace -}}{{- end -}}
{{- $found | uniq | toJson -}}
{{- end -}}

{{/* A peer of a NetworkPolicy: the pods of a pool, seen from another namespace or its own. Call: (list $ $pool NAMESPACE). */}}
{{- define "tokenpool.peer" -}}
{{- $pool := index . 1 -}}
- podSelector:
    matchLabels: {{- toYaml $pool.selector | nindent 6 }}
  {{- if ne $pool.namespace (index . 2) }}
  namespaceSelector:
    matchLabels: {kubernetes.io/metadata.name: {{ $pool.namespace }}}
  {{- end }}
{{- end -}}

{{/* The privileges of our own containers. */}}
{{- define "tokenpool.securityContext" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
runAsGroup: 65532
runAsUser: 65532
{{- end -}}

{{/* Where a part's pods run. Call with the part's values. */}}
{{- define "tokenpool.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "tokenpool.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
