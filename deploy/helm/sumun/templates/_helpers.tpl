{{- define "sumun.labels" -}}
app.kubernetes.io/part-of: sumun
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "sumun.select" -}}
app.kubernetes.io/name: sumun-{{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "sumun.image" -}}
{{ .root.Values.image.registry }}/sumun-{{ .part }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "sumun.pull" -}}
{{- range .Values.image.pullSecrets }}
- name: {{ . }}
{{- end }}
{{- end }}

{{/* Where agents reach the collector: by a name of the cluster, the same from every namespace. */}}
{{- define "sumun.address" -}}
{{ .Values.agent.collector | default (printf "sumun-collector.%s.svc:%v" .Release.Namespace .Values.collector.service.port) }}
{{- end }}
