//go:build unix && !linux

package filestore_test

import "testing"

const readOnly = 0

func mustMount(t testing.TB, _ string, _ int, _ string) { t.Skip("mounts on Linux only") }
