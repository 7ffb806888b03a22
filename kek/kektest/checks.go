package kektest

import "testing"

type check struct {
	name string
	run  func(testing.TB, Harness)
}

func checks() []check { return nil }
