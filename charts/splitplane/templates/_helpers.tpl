{{- define "splitplane.labels" -}}
app.kubernetes.io/name: splitplane
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Labels that select pods: they may never change, so versions are not among them. Takes (list root component). */ -}}
{{- define "splitplane.selector" -}}
app.kubernetes.io/name: splitplane
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- /* Takes (list root image). With a digest the tag only tells people which release that is. */ -}}
{{- define "splitplane.image" -}}
{{- $image := index . 1 -}}
{{ $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* Names of the namespaced objects: the release's name, which may already say splitplane. */ -}}
{{- define "splitplane.name" -}}
{{- if contains "splitplane" .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-splitplane" .Release.Name | trunc 43 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- /* Names of the cluster's own objects tell whose they are: validate.yaml looks for those of another release. */ -}}
{{- define "splitplane.clusterName" -}}
{{ printf "%s:%s" .Release.Namespace (include "splitplane.name" .) }}
{{- end }}

{{- define "splitplane.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "splitplane.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "splitplane.downwardEnv" -}}
- name: SPLITPLANE_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: SPLITPLANE_POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: SPLITPLANE_POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: SPLITPLANE_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end }}

{{- define "splitplane.pullSecretNames" -}}
{{- range $index, $secret := .Values.imagePullSecrets }}{{ if $index }} {{ end }}{{ if kindIs "map" $secret }}{{ $secret.name }}{{ else }}{{ $secret }}{{ end }}{{ end }}
{{- end }}

{{- define "splitplane.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range splitList " " (include "splitplane.pullSecretNames" $) }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
