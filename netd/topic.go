package main

// A conversation that has joined a topic of gossipsub: each write of `data` is one message, a read gives those of others, a line of JSON each.

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
)

const (
	maxMessage    = 64 << 10
	topicWaiting  = 256 // messages that wait for a slow reader; those after them are lost to it
	maxTopicsPeer = 256 // that one peer may subscribe to
)

func (n *node) startTopics(ctx context.Context) (err error) {
	filter := pubsub.WrapLimitSubscriptionFilter(pubsub.NewRegexpSubscriptionFilter(regexp.MustCompile("")), maxTopicsPeer)
	n.pubsub, err = pubsub.NewGossipSub(ctx, n.host, pubsub.WithMaxMessageSize(maxMessage+4096), pubsub.WithSubscriptionFilter(filter))
	return err
}

func (c *conv) join(name string) error {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if len(name) > maxName {
		return fmt.Errorf("a topic's name of %d bytes; at most %d are allowed", len(name), maxName)
	}
	if err := c.begin("Joined", protocolID(name)); err != nil {
		return err
	}
	topic, err := c.t.n.pubsub.Join(name)
	if err != nil {
		return fmt.Errorf("%s has been joined already: %w", name, err)
	}
	sub, err := topic.Subscribe(pubsub.WithBufferSize(topicWaiting))
	if err != nil {
		topic.Close()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.topic, c.sub = topic, sub
	return nil
}

func (c *conv) publish(ctx context.Context, b []byte) (int, error) {
	if len(b) > maxMessage {
		return 0, fmt.Errorf("a message of %d bytes; at most %d are allowed", len(b), maxMessage)
	}
	return len(b), c.topic.Publish(ctx, b)
}

// message gives the next line, or what is left of the one that is being read.
func (c *conv) message(ctx context.Context, count uint32) ([]byte, error) {
	select {
	case c.reading <- struct{}{}:
		defer func() { <-c.reading }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for len(c.rest) == 0 {
		m, err := c.sub.Next(ctx)
		if err != nil {
			return nil, err
		}
		if m.ReceivedFrom != c.t.n.host.ID() {
			c.rest, _ = json.Marshal(map[string]any{"from": m.GetFrom().String(), "data": m.GetData()})
			c.rest = append(c.rest, '\n')
		}
	}
	k := min(len(c.rest), int(count))
	b := c.rest[:k]
	c.rest = c.rest[k:]
	return b, nil
}

func (c *conv) joined() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sub != nil
}

func (c *conv) leave() {
	if c.sub != nil {
		c.sub.Cancel()
		c.topic.Close()
	}
}

func (c *conv) topicPeers() string {
	l := []string{}
	for _, p := range c.topic.ListPeers() {
		l = append(l, p.String())
	}
	return lines(l)
}
