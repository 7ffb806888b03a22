// Command parts builds everything that the end-to-end tests run into their cache
// folder, and prints where each program is.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/kube-kek/kube-kek/e2e/internal/parts"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for _, p := range parts.All {
		path, err := parts.Path(ctx, p)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Printf("%-16s %s\n", p, path)
	}
}
