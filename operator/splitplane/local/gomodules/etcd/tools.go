//go:build tools

// Package tools names the command that the embedded cluster builds, so that go.sum covers it.
package tools

import _ "go.etcd.io/etcd/server/v3"
