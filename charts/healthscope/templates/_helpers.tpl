{{/* Labels of every object; those of the values do not replace ours. */}}
{{- define "healthscope.labels" -}}
{{ toYaml (merge (dict "app.kubernetes.io/name" "healthscope") .Values.labels) }}
{{- end }}

{{/* Labels of the aggregator's objects. */}}
{{- define "healthscope.aggregatorLabels" -}}
{{ toYaml (merge (include "healthscope.selector" . | fromYaml) .Values.labels) }}
{{- end }}

{{/* What Services, budgets and policies find the aggregator's pods by. Never changes: a Deployment's selector cannot. */}}
{{- define "healthscope.selector" -}}
app.kubernetes.io/name: healthscope
app.kubernetes.io/component: aggregator
{{- end }}

{{/* repository:tag, or repository@digest; called with the image's values and the chart's root. */}}
{{- define "healthscope.image" -}}
{{- $image := index . 0 -}}
{{- $root := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The name in the aggregator's certificate. */}}
{{- define "healthscope.serverName" -}}
healthscope-aggregator.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Address to listen on. */}}
{{- define "healthscope.any" -}}
{{ if eq .Values.ipFamily "IPv6" }}[::]{{ else }}0.0.0.0{{ end }}
{{- end }}

{{/* What runs as nobody, writes nowhere and asks the kernel for nothing: Pod Security `restricted`. */}}
{{- define "healthscope.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What no schema can say: values that need each other. */}}
{{- define "healthscope.validate" -}}
{{- $tls := .Values.tls -}}
{{- if and (eq $tls.mode "certManager") (not $tls.certManager.issuer.name) -}}
{{- fail "tls.mode is certManager: say by tls.certManager.issuer.name which issuer is to sign the certificate" -}}
{{- end -}}
{{- if and (eq $tls.mode "secret") .Values.injector.enabled (not $tls.caBundle) -}}
{{- fail "tls.mode is secret and injector.enabled is true: give the certificates (PEM) of who signed that Secret's certificate as tls.caBundle, for the API server to trust the webhook, or set injector.enabled=false" -}}
{{- end -}}
{{- if and $tls.caBundle (not (contains "-----BEGIN CERTIFICATE-----" $tls.caBundle)) -}}
{{- fail "tls.caBundle is no PEM: it must have a block that begins with -----BEGIN CERTIFICATE-----, as --set-file tls.caBundle=ca.crt gives it" -}}
{{- end -}}
{{- if and $tls.caBundle (eq $tls.mode "self") -}}
{{- fail "tls.caBundle is given and tls.mode is self, whose authority the aggregator makes by itself: leave tls.caBundle out, or choose another tls.mode" -}}
{{- end -}}
{{- $collector := .Values.monitor.serviceAccount -}}
{{- if ne (empty $collector.name) (empty $collector.namespace) -}}
{{- fail "monitor.serviceAccount needs both name and namespace" -}}
{{- end -}}
{{- end }}
