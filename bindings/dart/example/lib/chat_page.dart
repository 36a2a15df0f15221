import 'package:flutter/material.dart';
import 'package:lib_mlx/lib_mlx.dart';

import 'session.dart';

/// A field for the model's path, how its load goes, and the conversation.
class ChatPage extends StatefulWidget {
  const ChatPage({super.key, this.libraryPath});

  final String? libraryPath;

  @override
  State<ChatPage> createState() => _ChatPageState();
}

class _ChatPageState extends State<ChatPage> {
  late final Session _session = Session(widget.libraryPath);
  final _path = TextEditingController(text: 'smollm2');
  final _prompt = TextEditingController();

  @override
  void dispose() {
    _session.dispose();
    _path.dispose();
    _prompt.dispose();
    super.dispose();
  }

  void _ask() {
    if (_prompt.text.isEmpty) return;
    _session.ask(_prompt.text);
    _prompt.clear();
  }

  @override
  Widget build(BuildContext context) => ListenableBuilder(
        listenable: _session,
        builder: (context, _) => Scaffold(
          appBar: AppBar(title: const Text('lib_mlx')),
          body: Padding(
            padding: const EdgeInsets.all(16),
            child: Column(
              children: [
                _modelRow(),
                if (_session.progress case final progress?) ...[
                  LinearProgressIndicator(value: progress.fraction),
                  Text(progress.stage),
                ],
                if (_session.problem case final problem?)
                  Text(problem, style: TextStyle(color: Theme.of(context).colorScheme.error)),
                Expanded(child: _conversation()),
                _promptRow(),
              ],
            ),
          ),
        ),
      );

  Widget _modelRow() => Row(
        children: [
          Expanded(
            child: TextField(
              controller: _path,
              decoration: const InputDecoration(labelText: 'Model'),
            ),
          ),
          FilledButton(
            onPressed: _session.progress == null ? () => _session.load(_path.text) : null,
            child: const Text('Load'),
          ),
        ],
      );

  Widget _conversation() {
    final messages = [
      ..._session.messages,
      if (_session.answering) ChatMessage.assistant(_session.answer),
    ];
    return ListView.builder(
      itemCount: messages.length,
      itemBuilder: (context, index) => ListTile(
        leading: Icon(messages[index].role == 'user' ? Icons.person : Icons.memory),
        title: SelectableText(messages[index].text ?? ''),
      ),
    );
  }

  Widget _promptRow() => Row(
        children: [
          Expanded(
            child: TextField(
              controller: _prompt,
              enabled: _session.ready,
              onSubmitted: (_) => _ask(),
              decoration: const InputDecoration(labelText: 'Message'),
            ),
          ),
          if (_session.answering)
            IconButton(onPressed: _session.stop, icon: const Icon(Icons.stop))
          else
            IconButton(onPressed: _session.ready ? _ask : null, icon: const Icon(Icons.send)),
        ],
      );
}
