{{/* The release's name where it says what it is, else with it. */}}
{{- define "name" -}}
{{- if contains "imagenet-serve" .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "imagenet-serve-%s" .Release.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What the base calls imagenet-serve, under the release's name; the name of the application stays. */}}
{{- define "renamed" -}}
{{- $name := include "name" .root }}
{{- $text := .text }}
{{- if ne $name "imagenet-serve" }}
{{- $text = regexReplaceAll "(?m)^(\\s*-?\\s*(?:name|serviceAccountName|claimName): )imagenet-serve$" $text (printf "${1}%s" $name) }}
{{- $text = regexReplaceAll "(?m)^(\\s*)app.kubernetes.io/name: imagenet-serve$" $text (printf "${1}app.kubernetes.io/name: imagenet-serve\n${1}app.kubernetes.io/instance: %s" .root.Release.Name) }}
{{- $text = regexReplaceAll "service=\"imagenet-serve\"" $text (printf "service=\"%s\"" $name) }}
{{- end }}
{{- $text }}
{{- end }}

{{/* Of every resource. */}}
{{- define "common" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
